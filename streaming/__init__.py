"""Events in: wire schema, ingestion, stores, archive, simulator, trainer. Knows Kafka, not Ray."""
