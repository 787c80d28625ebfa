"""What others can test their parts with: hostile vectors, conformance laws."""
