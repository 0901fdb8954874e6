//! Why an image cannot be read.

/// An image cannot be read or written; the text is the reason that a report shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Bytes of no known kind.
    #[error("the file is not an image of a known kind")]
    UnknownFormat,
    /// An image, but of a kind that is not decoded.
    #[error("{kind} is not supported")]
    Unsupported {
        /// What the file is.
        kind: &'static str,
    },
    /// Something else under the name of an image.
    #[error("the file is {kind}, not an image")]
    NotAnImage {
        /// What the file is, with its article.
        kind: &'static str,
    },
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
    /// The image cannot be encoded.
    #[error("cannot be encoded: {reason}")]
    Encode {
        /// What the encoder says.
        reason: String,
    },
}

impl ImageError {
    /// The kind of reason, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::UnknownFormat => "unknown format",
            Self::Unsupported { .. } => "unsupported format",
            Self::NotAnImage { .. } => "not an image",
            Self::TooLarge { .. } => "too large",
            Self::Corrupt { .. } => "corrupt",
            Self::Encode { .. } => "cannot be encoded",
        }
    }
}
