"""HTTP: search, selection and embeddings for other programs, and the search page."""
