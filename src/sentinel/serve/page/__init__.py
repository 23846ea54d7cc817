"""The page of ``sentinel ui``: a dial of levels and widths, and what it does to the text."""
