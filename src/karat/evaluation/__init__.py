"""Figures with error bars beside the nulls they have to beat, and the report that shows them.

`base` holds the contract and the front door (`evaluate`, `summary`), `_report` the page and the picture. Every other
file without an underscore is one evaluation. Nothing here knows about models: it sees a scorer, texts and numbers.
"""
