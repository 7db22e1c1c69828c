"""Pages for a browser: one style, tables and charts that runs, evaluations, search and studies share."""
