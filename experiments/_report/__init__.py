"""What several experiments share: plants, statistics, tables and figures."""
