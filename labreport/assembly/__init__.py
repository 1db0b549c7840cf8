"""The report: run the notebooks, merge what they made into one offline HTML file, print it to PDF.

notebooks (papermill) -> document (merge, checks) -> exporter (nbconvert, Jinja) -> captions, fonts
-> pdf (browser)
"""
