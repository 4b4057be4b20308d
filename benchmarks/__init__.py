"""What is measured of the project: speed, memory, and the published table made again."""
