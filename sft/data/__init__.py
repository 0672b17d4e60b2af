"""Files and hub datasets to chats, {"messages": [...], "kind": ...}.

columns: What a source's `columns` names: a field of the file, or a part of one, FIELD[0] or
    FIELD.KEY.
csv_rows: CSV files with a header to records; every cell is text.
field_names: Names of fields: pairs of a question and its answer, of two answers, and the rest
    of a row.
fields: The fields of a row: which of them a format has read, and whether the others hold
    content.
formats: Rows of any known format to chats, recognised by their fields.
json_rows: JSON files to records, in each layout that exporters write.
loss_marks: Marks of turns that a row wants left untrained, in the spellings of several
    trainers.
message_trees: Open-Assistant's trees of messages to conversations, nested in a row or with a
    row a message.
messages: Messages of any known spelling to {"role", "content", "tool_calls"?}, and the rules of
    a chat.
mixture: How much of each source is trained: weights become row counts, by lot from a seed.
prompts: Prompts for sampling and measuring: conversations that wait for an answer.
question_text: The text of a question whose parts stand in several fields: instruction, passage,
    options.
readers: Files and hub datasets to records: JSON, JSONL, Parquet and CSV, each with its file and
    line.
records: A row of a file as it was read, and the lines of a text file with their numbers.
row_errors: Rows that cannot be used, each told in one sentence with its file and line.
source_table: A table of what became of each source's rows: kept, left out, changed, and fields
    not read.
sources: Sources to chats, {"messages", "kind", "origin", ...}, and counts of what is left out
    and why.
unsupported: Rows that are no text to imitate: pictures and sound, and answers that a label
    calls bad.
"""
