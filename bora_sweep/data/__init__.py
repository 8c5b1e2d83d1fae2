"""From a file to a tokenised corpus and its batches."""
