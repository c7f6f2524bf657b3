//! Numbers as people read them.

/// With a comma between each three digits: `11,689,512`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 epoch`, `10 epochs`, `2 batches`.
pub(crate) fn count(n: usize, thing: &str) -> String {
    let plural = match n {
        1 => "",
        _ if thing.ends_with("tch") => "es",
        _ => "s",
    };
    format!("{} {thing}{plural}", thousands(n as u64))
}

/// To three or four digits with a unit: `61.7 k`, `11.69 M`, `1.81 G`.
pub(crate) fn compact(n: u64) -> String {
    let x = n as f64;
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", x / 1e6),
        _ => format!("{:.2} G", x / 1e9),
    }
}

/// Bytes in decimal units: `46.8 MB`.
pub(crate) fn bytes(n: u64) -> String {
    let x = n as f64;
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", x / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", x / 1e6),
        _ => format!("{:.2} GB", x / 1e9),
    }
}

/// A time span in its two largest units: `8.4 s`, `3 min 05 s`, `2 h 07 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60),
    }
}

/// Images per second: whole numbers, except where that would lose the digits that count.
pub(crate) fn rate(images_per_second: f64) -> String {
    if images_per_second < 100.0 {
        format!("{images_per_second:.1}")
    } else {
        thousands(images_per_second.round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_three() {
        assert_eq!([0, 999, 1_000, 11_689_512].map(thousands), ["0", "999", "1,000", "11,689,512"]);
    }

    #[test]
    fn plurals() {
        assert_eq!([0, 1, 1_200].map(|n| count(n, "step")), ["0 steps", "1 step", "1,200 steps"]);
        assert_eq!([count(2, "batch"), count(2, "epoch")], ["2 batches", "2 epochs"]);
    }

    #[test]
    fn units() {
        assert_eq!([7, 61_706, 11_689_512, 1_814_073_344].map(compact), ["7", "61.7 k", "11.69 M", "1.81 G"]);
        assert_eq!([12, 246_824, 46_758_048].map(bytes), ["12 B", "246.8 kB", "46.8 MB"]);
        assert_eq!(
            [8.44, 59.7, 185.0, 7_620.0].map(duration),
            ["8.4 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]
        );
        assert_eq!([8.73, 1234.6].map(rate), ["8.7", "1,235"]);
    }
}
