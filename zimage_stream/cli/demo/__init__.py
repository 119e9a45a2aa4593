"""``zimage demo``: the whole path on one machine, from prompts to a contact sheet."""
