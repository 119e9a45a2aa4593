"""``zimage produce``: one prompt, or a file of them."""
