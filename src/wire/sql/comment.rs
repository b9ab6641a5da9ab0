//! sqlcommenter and marginalia comments: recognised, read, cut (wire.md D2, D3).
