"""Bytes and paths -> arrays; limits are enforced here, before anything is decoded."""
