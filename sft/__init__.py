"""The base layer: rows, chats, token rows, models, runs and the SFT trainer. Imports nothing of ours."""
