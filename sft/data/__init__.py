"""Files and hub datasets to chats, {"messages": [...], "kind": ...}.

columns: What a source's `columns` names: a field of the file, or a part of one, FIELD[0] or
    FIELD.KEY.
csv_rows: CSV files with a header to records; every cell is text.
field_names: Names of fields: pairs of a question and its answer, of two answers, and the rest
    of a row.
fields: The fields of a row: which of them a format has read, and whether the others hold
    content.
formats: Converts rows of any known format to chats; the fields decide the format.
json_rows: Reads JSON files as records, in each layout that exporters write.
loss_marks: Marks of turns that a row wants left untrained, in the spellings of several
    trainers.
message_trees: Converts Open-Assistant's message trees, nested or one message a row, to
    conversations.
messages: Messages of any known spelling to {"role", "content", "tool_calls"?}, and the rules of
    a chat.
mixture: Mixes the sources: weights become row counts, sampled at random from a seed.
prompts: Prompts for sampling and measuring: conversations that wait for an answer.
question_text: The text of a question whose parts stand in several fields: instruction, passage,
    options.
readers: Files and hub datasets to records: JSON, JSONL, Parquet and CSV, each with its file and
    line.
records: Records (rows as the file holds them) and the numbered lines of a text file.
row_errors: Errors for rows that cannot be used: one sentence each, with file and line.
source_table: A table of what became of each source's rows: kept, left out, changed, and fields
    not read.
sources: Sources to chats, {"messages", "kind", "origin", ...}, and counts of what is left out
    and why.
unsupported: Rows that are no text to imitate: pictures and sound, and answers that a label
    calls bad.
"""
