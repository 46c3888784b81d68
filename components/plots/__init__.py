"""Reports for people: one self-contained HTML page, charts as inline SVG, nothing loaded from anywhere."""
