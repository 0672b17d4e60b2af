"""results.json as console tables, Markdown and one HTML page.

answer_cards: Cards of the report: one prompt or question with every model's answer, and what
    filters it.
caveats: Caveats on changes that training alone does not explain: formats, weights, cut answers.
detail_tables: Rows of the report's smaller tables: repetition by group and definition, safety
    by category.
epoch_plots: Picture and table of the measures in training, over the epochs of all stages.
examples: Choose by rule the answers and questions that the report shows, and find their loops.
headline: Headline of the report: the figures of results.json as sentences, with nothing
    recomputed.
outcomes: Format how an answer ended and what it scored, with the kinds that the report filters
    by.
plots: Pictures of the report: inline SVG for the page, one PNG for a README.
report: Write report.html and report.md from results.json and stored samples.
sample_files: Find and read the stored samples of a run.
tables: The main table and the table of changes: as rows for the page, in a terminal, in
    Markdown.
"""
