"""The wire contract, version 1: generated from protos/guardwire/v1/moderation.proto."""
