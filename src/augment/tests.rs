use super::*;
use crate::rng::{Purpose, Stream};

#[test]
fn crops_lie_inside_the_image_and_keep_to_their_area() {
    let recipe = Recipe::imagenet(224);
    for (width, height) in [(500, 375), (1, 1), (3000, 2), (32, 32), (2, 900)] {
        for draw in 0..500 {
            let mut stream = Stream::new(9, Purpose::Augmentation, u64::from(width), draw);
            let crop = recipe.draw(&mut stream, width, height).crop;
            assert!(crop.width >= 1 && crop.height >= 1);
            assert!(crop.left + crop.width <= width && crop.top + crop.height <= height);
            if (width, height) == (500, 375) {
                let share = f64::from(crop.width * crop.height) / (500.0 * 375.0);
                assert!((0.195..=1.0).contains(&share), "{share}");
            }
        }
    }
}

mod golden;
mod upright;
