//! Why a picture cannot be read.

/// A picture cannot be read or written; the text is the reason that a report shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Bytes of no known kind.
    #[error("the file is no picture of a known kind")]
    UnknownFormat,
    /// More pixels than allowed.
    #[error("{width}x{height} pixels are more than the limit of {limit}")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The most pixels allowed.
        limit: u64,
    },
    /// The header or the pixels are broken or cut.
    #[error("{format}: {reason}")]
    Corrupt {
        /// What the file is.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// The picture cannot be encoded.
    #[error("cannot be encoded: {reason}")]
    Encode {
        /// What the encoder says.
        reason: String,
    },
}

impl PictureError {
    /// The kind of reason, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownFormat => "unknown format",
            Self::TooLarge { .. } => "too large",
            Self::Corrupt { .. } => "corrupt",
            Self::Encode { .. } => "cannot be encoded",
        }
    }
}
