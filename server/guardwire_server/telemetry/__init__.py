"""What operators see: metrics, traces, logs. Knows `core` and OpenTelemetry; never holds text or token ids."""
