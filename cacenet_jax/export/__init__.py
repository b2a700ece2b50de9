"""--mode=export: a trained network as files that other programs run without this package."""
