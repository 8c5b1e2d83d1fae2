"""The page `index.html`: a document of numbers, and the scripts that draw it."""
