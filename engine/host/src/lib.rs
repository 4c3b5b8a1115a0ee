//! Serves the interface: owns the engine worker, the texts and the jobs, and speaks `protocol` over WebSocket and
//! in-process.
