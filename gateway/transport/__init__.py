"""The front doors: gRPC for clients, gRPC for nodes, HTTP. Protobuf stops here."""
