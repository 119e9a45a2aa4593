"""``zimage demo``: the whole pipeline on one machine, from prompts to a contact sheet."""
