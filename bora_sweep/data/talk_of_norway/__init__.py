"""Talk of Norway, the paper's corpus: downloaded, read and selected."""
