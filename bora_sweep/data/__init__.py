"""From a file to a corpus, its tokens and its batches."""
