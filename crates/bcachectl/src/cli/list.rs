//! Options of `bcachectl list`.

use bcache_cli::rows::Format;
use clap::{Args, ValueEnum};

/// Options of `bcachectl list`.
#[derive(Debug, Default, Args)]
pub struct ListArgs {
    /// Columns, separated by commas [default: set,device,kind,size,label,state,running,kernel]
    #[arg(short, long, value_enum, value_delimiter = ',', value_name = "COLUMNS")]
    pub output: Vec<ListColumn>,

    /// Sort all devices by a column, instead of listing them set by set
    #[arg(long, value_enum, value_name = "COLUMN")]
    pub sort: Option<ListColumn>,

    /// The other way round
    #[arg(long, requires = "sort")]
    pub reverse: bool,

    /// Sizes in bytes
    #[arg(short, long)]
    pub bytes: bool,

    /// Do not print the heading
    #[arg(short = 'n', long)]
    pub no_headings: bool,

    /// Print JSON; the same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// How to print
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListColumn {
    /// UUID of the set
    Set,
    /// Path of the device
    Device,
    /// cache or backing
    Kind,
    /// Size of the device
    Size,
    /// Label
    Label,
    /// State of a backing device: none, clean, dirty or inconsistent; of a cache, new or in use
    State,
    /// Name of the device that bcache runs; yes for a running cache, or no
    Running,
    /// Whether the kernel accepts the device, or why not
    Kernel,
    /// UUID of the device
    Uuid,
    /// Cache mode of a backing device
    Mode,
    /// Dirty data of a running backing device, as the kernel rounds it
    Dirty,
    /// Size of a cache's buckets
    Bucket,
    /// Block size
    Block,
    /// Replacement policy of a cache
    Policy,
}

impl ListColumn {
    /// Those that are shown where none is named.
    pub const DEFAULT: [Self; 8] = [
        Self::Set,
        Self::Device,
        Self::Kind,
        Self::Size,
        Self::Label,
        Self::State,
        Self::Running,
        Self::Kernel,
    ];

    /// Its name, as on the command line and in the heading.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl ListArgs {
    /// How to print.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format.unwrap_or_default() }
    }

    /// The columns to show.
    pub fn columns(&self) -> &[ListColumn] {
        if self.output.is_empty() { &ListColumn::DEFAULT } else { &self.output }
    }
}
