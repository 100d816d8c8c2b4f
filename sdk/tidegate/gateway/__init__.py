"""Generated protobuf code; see protos/."""
