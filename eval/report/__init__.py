"""results.json as console tables, Markdown and one HTML page.

answer_cards: Cards of the report: one prompt or question with every model's answer, and what
    filters it.
caveats: Caveats for reading a change as an effect of training: formats, weights, cut answers.
detail_tables: Rows of the report's smaller tables: repetition by group and definition, safety
    by category.
epoch_plots: Repetition and benchmarks in training, all stages in a row: the report's picture
    and table.
examples: Which answers and questions the report shows, chosen by rule, and where an answer
    loops.
headline: Headline of the report: the figures of results.json as sentences, with nothing
    recomputed.
outcomes: How an answer ended and what it scored, in words and in kinds that the report filters
    by.
plots: The report's pictures: fluid inline SVG for the page, one PNG for a README.
report: results.json and stored samples -> report.html and report.md.
sample_files: The stored samples of a run as the report reads them: where they are, and their
    rows.
tables: The main table and the table of changes: as rows for the page, in a terminal, in
    Markdown.
"""
