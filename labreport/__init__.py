"""From records to the lab report: statistics, tables, figures, analysis and the pages themselves."""
