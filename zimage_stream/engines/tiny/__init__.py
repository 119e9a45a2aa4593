"""The packaged checkpoint; README.md is its model card."""
