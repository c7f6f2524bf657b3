//! `shapes`: a data set that needs no files. Ten figures, one per image, in three colours of 32 × 32 pixels.
//!
//! The figure's place, size, proportions, turn, colours and texture are random and say nothing of its class;
//! so are the background, the clutter and the noise. Only the outline does. A linear model therefore finds
//! little, a network without weight sharing more, and a convolutional network nearly everything.

use crate::dataset::Split;
use rand::Rng;
use std::f32::consts::{PI, TAU};
use zoo_ops::rng::{ChaCha8Rng, stream};

pub(crate) const CLASSES: [&str; 10] =
    ["circle", "ring", "crescent", "semicircle", "triangle", "square", "pentagon", "star", "cross", "arrow"];

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;

/// Pixels [n, 32, 32, 3] and labels of `n` images. Image i has class i mod 10 and is a function of
/// (split, seed, i) alone.
pub(crate) fn draw(split: Split, seed: u64, n: usize) -> (Vec<u8>, Vec<u32>) {
    let purpose = format!("shapes {}", split.name());
    let labels: Vec<u32> = (0..n).map(|i| (i % CLASSES.len()) as u32).collect();
    let mut pixels = vec![0; n * PIXELS * 3];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = n.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (part, images) in pixels.chunks_mut(share * PIXELS * 3).enumerate() {
            let (purpose, labels) = (&purpose, &labels);
            scope.spawn(move || {
                for (k, image) in images.chunks_exact_mut(PIXELS * 3).enumerate() {
                    let i = part * share + k;
                    draw_image(labels[i] as usize, &mut stream(seed, purpose, i as u64), image);
                }
            });
        }
    });
    (pixels, labels)
}

type Rgb = [f32; 3];
type Point = [f32; 2];

fn draw_image(class: usize, rng: &mut ChaCha8Rng, out: &mut [u8]) {
    let [ground, color] = two_colors(rng);
    let ground = Paint::draw(ground, 45.0, rng);
    let mut canvas: Vec<Rgb> = (0..PIXELS).map(|i| ground.at(pixel_center(i))).collect();
    for _ in 0..rng.random_range(1..=4) {
        clutter(&mut canvas, rng);
    }
    let radius = rng.random_range(7.5..12.5);
    let margin = radius * 0.95;
    let mut center = || rng.random_range(margin..SIDE as f32 - margin);
    let place = Place::draw([center(), center()], radius, 0.2, rng);
    let paint = Paint::draw(color, 35.0, rng);
    let outline = Outline::of_class(class);
    paint_figure(&mut canvas, &place, &paint, 1.0, |p| outline.distance(p));
    for _ in 0..rng.random_range(0..=1) {
        scratch(&mut canvas, rng);
    }
    let noise = rng.random_range(2.0..12.0);
    for (bytes, color) in out.as_chunks_mut::<3>().0.iter_mut().zip(&canvas) {
        for (byte, &v) in bytes.iter_mut().zip(color) {
            *byte = (v + noise * near_normal(rng) + 0.5) as u8; // The cast cuts off at 0 and 255.
        }
    }
}

fn pixel_center(i: usize) -> Point {
    [(i % SIDE) as f32 + 0.5, (i / SIDE) as f32 + 0.5]
}

fn random_color(rng: &mut ChaCha8Rng) -> Rgb {
    std::array::from_fn(|_| rng.random_range(10.0..245.0))
}

/// Two colours well apart, for the ground and the figure. Nine times out of ten the figure is the brighter one:
/// that gives even a linear model something to see, the figure's area.
fn two_colors(rng: &mut ChaCha8Rng) -> [Rgb; 2] {
    let brighter = rng.random_range(0..10) > 0;
    loop {
        let (a, b) = (random_color(rng), random_color(rng));
        let distance = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        if distance > 120.0 {
            let ascending = a.iter().sum::<f32>() < b.iter().sum::<f32>();
            return if ascending == brighter { [a, b] } else { [b, a] };
        }
    }
}

/// Mean 0, deviation 1: the sum of four uniform bytes.
fn near_normal(rng: &mut ChaCha8Rng) -> f32 {
    let sum: u32 = rng.random::<u32>().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
    (sum as f32 - 510.0) / 147.8
}

fn rotate([x, y]: Point, [cos, sin]: Point) -> Point {
    [cos * x + sin * y, cos * y - sin * x]
}

fn direction(angle: f32) -> Point {
    [angle.cos(), angle.sin()]
}

fn length([x, y]: Point) -> f32 {
    (x * x + y * y).sqrt()
}

/// A colour that changes over the picture: between two colours, by a pattern.
struct Paint {
    colors: [Rgb; 2],
    pattern: Pattern,
    direction: Point,
    /// Waves per 2π pixels.
    frequency: f32,
    phase: f32,
}

#[derive(Clone, Copy)]
enum Pattern {
    Gradient,
    Stripes,
    Checks,
    Spots,
}

impl Paint {
    fn draw(color: Rgb, spread: f32, rng: &mut ChaCha8Rng) -> Self {
        let other = color.map(|v| (v + rng.random_range(-spread..spread)).clamp(0.0, 255.0));
        let patterns = [Pattern::Gradient, Pattern::Stripes, Pattern::Checks, Pattern::Spots];
        Self {
            colors: [color, other],
            pattern: patterns[rng.random_range(0..patterns.len() as u32) as usize],
            direction: direction(rng.random_range(0.0..TAU)),
            frequency: rng.random_range(0.4..1.6),
            phase: rng.random_range(0.0..TAU),
        }
    }

    fn at(&self, [x, y]: Point) -> Rgb {
        let [u, v] = rotate([x - 16.0, y - 16.0], self.direction);
        let wave = |t: f32| (t * self.frequency + self.phase).sin();
        let t = match self.pattern {
            Pattern::Gradient => u / 32.0 + 0.5,
            Pattern::Stripes => 0.5 + 0.5 * wave(u),
            Pattern::Checks => 0.5 + (2.0 * wave(u) * wave(v)).clamp(-0.5, 0.5),
            Pattern::Spots => (wave(u) + wave(v) - 0.6).clamp(0.0, 1.0),
        };
        mix(self.colors[0], self.colors[1], t.clamp(0.0, 1.0))
    }
}

fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    std::array::from_fn(|k| a[k] + (b[k] - a[k]) * t)
}

/// Where a figure of radius 1 about the origin comes to lie.
struct Place {
    center: Point,
    radius: f32,
    turn: Point,
    /// Width over height, as a factor on x; its inverse on y.
    stretch: f32,
}

impl Place {
    fn draw(center: Point, radius: f32, stretch: f32, rng: &mut ChaCha8Rng) -> Self {
        let turn = direction(rng.random_range(0.0..TAU));
        let stretch = rng.random_range(-stretch..stretch);
        Self { center, radius, turn, stretch: (stretch * 0.5).exp() }
    }

    fn to_figure(&self, [x, y]: Point) -> Point {
        let [u, v] = rotate([x - self.center[0], y - self.center[1]], self.turn);
        [u / (self.radius * self.stretch), v * self.stretch / self.radius]
    }
}

/// Paints where `distance` (in units of the radius, negative inside) says so, with soft edges one pixel wide.
fn paint_figure(
    canvas: &mut [Rgb],
    place: &Place,
    paint: &Paint,
    opacity: f32,
    distance: impl Fn(Point) -> f32,
) {
    let reach = place.radius * 1.3 + 1.0;
    for (i, color) in canvas.iter_mut().enumerate() {
        let p = pixel_center(i);
        if (p[0] - place.center[0]).abs() > reach || (p[1] - place.center[1]).abs() > reach {
            continue;
        }
        let coverage = (0.5 - distance(place.to_figure(p)) * place.radius).clamp(0.0, 1.0);
        if coverage > 0.0 {
            *color = mix(*color, paint.at(p), coverage * opacity);
        }
    }
}

/// A small disc, square or ring anywhere, below the figure.
fn clutter(canvas: &mut [Rgb], rng: &mut ChaCha8Rng) {
    let center = [rng.random_range(0.0..32.0), rng.random_range(0.0..32.0)];
    let place = Place::draw(center, rng.random_range(1.2..3.6), 0.6, rng);
    let paint = Paint::draw(random_color(rng), 30.0, rng);
    let opacity = rng.random_range(0.5..1.0);
    match rng.random_range(0..4) {
        0 => paint_figure(canvas, &place, &paint, opacity, |p| length(p) - 1.0),
        1 => paint_figure(canvas, &place, &paint, opacity, |[x, y]| x.abs().max(y.abs()) - 0.85),
        2 => paint_figure(canvas, &place, &paint, opacity, |p| (length(p) - 0.8).abs() - 0.2),
        _ => scratch(canvas, rng),
    }
}

/// A thin straight line, as it may also cross the figure.
fn scratch(canvas: &mut [Rgb], rng: &mut ChaCha8Rng) {
    let center = [rng.random_range(0.0..32.0), rng.random_range(0.0..32.0)];
    let half_length = rng.random_range(3.0..10.0);
    let half_width = rng.random_range(0.3..0.8) / half_length;
    let place = Place::draw(center, half_length, 0.01, rng);
    let paint = Paint::draw(random_color(rng), 20.0, rng);
    let opacity = rng.random_range(0.4..0.9);
    paint_figure(canvas, &place, &paint, opacity, |[x, y]| (x.abs() - 1.0).max(y.abs() - half_width));
}

/// The edge of a figure of radius 1.
enum Outline {
    Circle,
    Ring,
    Crescent,
    Semicircle,
    Polygon(Vec<Point>),
}

impl Outline {
    fn of_class(class: usize) -> Self {
        match CLASSES[class] {
            "circle" => Self::Circle,
            "ring" => Self::Ring,
            "crescent" => Self::Crescent,
            "semicircle" => Self::Semicircle,
            "triangle" => Self::regular(3, 1.05),
            "square" => Self::regular(4, 1.05),
            "pentagon" => Self::regular(5, 1.0),
            "star" => Self::star(),
            "cross" => Self::cross(),
            _ => Self::arrow(),
        }
    }

    fn regular(corners: u32, radius: f32) -> Self {
        let corner = |k| direction(TAU * k as f32 / corners as f32).map(|v| v * radius);
        Self::Polygon((0..corners).map(corner).collect())
    }

    fn star() -> Self {
        let corner = |k: u32| {
            let radius = if k.is_multiple_of(2) { 1.1 } else { 0.46 };
            direction(PI * k as f32 / 5.0).map(|v| v * radius)
        };
        Self::Polygon((0..10).map(corner).collect())
    }

    fn cross() -> Self {
        const ARM: f32 = 0.32;
        let quarter: [Point; 3] = [[1.0, -ARM], [1.0, ARM], [ARM, ARM]];
        let corner = |k: usize| rotate(quarter[k % 3], direction(-PI * (k / 3) as f32 / 2.0));
        Self::Polygon((0..12).map(corner).collect())
    }

    fn arrow() -> Self {
        Self::Polygon(vec![
            [1.1, 0.0],
            [0.1, 0.85],
            [0.1, 0.32],
            [-1.0, 0.32],
            [-1.0, -0.32],
            [0.1, -0.32],
            [0.1, -0.85],
        ])
    }

    /// Signed distance to the edge, negative inside.
    fn distance(&self, p: Point) -> f32 {
        match self {
            Self::Circle => length(p) - 0.9,
            Self::Ring => (length(p) - 0.72).abs() - 0.23,
            Self::Crescent => (length(p) - 1.0).max(0.8 - length([p[0] - 0.5, p[1]])),
            Self::Semicircle => (length([p[0] + 0.4, p[1]]) - 1.05).max(-0.4 - p[0]),
            Self::Polygon(corners) => polygon_distance(corners, p),
        }
    }
}

/// The distance to the nearest side, its sign from the parity of the sides crossed by a ray.
fn polygon_distance(corners: &[Point], [x, y]: Point) -> f32 {
    let mut nearest = f32::MAX;
    let mut inside = false;
    let mut from = corners[corners.len() - 1];
    for &to in corners {
        let (along, offset) = ([to[0] - from[0], to[1] - from[1]], [x - from[0], y - from[1]]);
        let dot = along[0] * offset[0] + along[1] * offset[1];
        let t = (dot / (along[0] * along[0] + along[1] * along[1])).clamp(0.0, 1.0);
        let (dx, dy) = (offset[0] - t * along[0], offset[1] - t * along[1]);
        nearest = nearest.min(dx * dx + dy * dy);
        if (from[1] > y) != (to[1] > y) && x < from[0] + (y - from[1]) * along[0] / along[1] {
            inside = !inside;
        }
        from = to;
    }
    if inside { -nearest.sqrt() } else { nearest.sqrt() }
}
