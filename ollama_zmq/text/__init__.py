"""Text to token ids and back, stop strings, and prompts from chat templates. Touches no model and no device."""
