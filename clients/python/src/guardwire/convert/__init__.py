"""The only package that reads and writes protobuf messages: requests go out, responses come in."""
