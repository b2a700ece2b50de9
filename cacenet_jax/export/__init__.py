"""--mode=export: files that let other programs run a trained network without this package."""
