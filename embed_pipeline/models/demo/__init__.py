"""The demo model: a small CLIP of our own, trained on generated scenes. See MODEL_CARD.md."""
