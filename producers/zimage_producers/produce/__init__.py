"""``zimage produce``: sends one prompt, or a file of prompts."""
