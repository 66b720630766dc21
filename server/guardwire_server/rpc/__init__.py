"""The gRPC front: the only place that knows grpc and protobuf."""
