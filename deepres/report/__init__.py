"""What people look at: tables, curves, paths, videos."""
