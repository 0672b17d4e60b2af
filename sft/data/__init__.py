"""Files and hub datasets to chats, {"messages": [...], "kind": ...}.

csv_reader: CSV files with a header as records; every cell is text.
field_names: Names of fields: pairs of a question and its answer, pairs of answers, and other
    fields.
fields: Fields of a row: which of them a format has read, and whether the others hold content.
formats: Rows of any known format as chats; the fields decide the format.
json_reader: JSON files as records, in each layout that exporters write.
json_values: JSON values: depth, lone surrogates, type names, and parts named by FIELD[0] or
    FIELD.KEY.
loss_marks: Marks of turns that a row excludes from the loss, in the spellings of several
    trainers.
message_trees: Open-Assistant's message trees, nested or one message a row, as conversations.
messages: Messages of any known spelling as {"role", "content", "tool_calls"?}, and the rules of
    a chat.
mixture: The mixture of sources: weights become row counts, sampled at random with a seed.
prompts: Prompts for sampling and evaluation: conversations that end with a user turn.
question_text: The text of a question whose parts are in several fields: instruction, passage,
    options.
readers: Files and Hub datasets as records: JSON, JSON Lines, Parquet and CSV, each with file
    and line.
records: Records (rows as the file holds them), and errors for records that cannot be used.
sources: Sources as chats, {"messages", "kind", "origin", ...}, and counts of the rows left out.
text_files: Text files, plain or gzipped, as numbered lines or one text, within limits on
    memory.
unsupported: Refusal of rows that no text model can imitate: media, and answers that a label
    calls bad.
"""
