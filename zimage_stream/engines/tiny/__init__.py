"""The packaged checkpoint; its model card is README.md."""
