"""Index media on disk and query them with text, images, audio or any mixture."""
