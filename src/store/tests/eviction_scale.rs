//! Measures the cost of an eviction with 100,000 images; `bench/README.md` has the results.

use super::images::image;
use super::*;
use crate::store::gc::eviction::Evicted;
use std::time::Instant;

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "a benchmark that takes a minute"]
fn evicting_with_a_hundred_thousand_images() {
    let images: u32 = std::env::var("IMAGES").map_or(100_000, |text| text.parse().unwrap());
    let (directory, store) = fresh();
    put(&store, b"config");
    put(&store, b"base");
    for number in 0..images {
        let layer = number.to_be_bytes();
        put(&store, &layer);
        // Ten repositories have half of the images, the others have ten each.
        let of = if number % 2 == 0 { number % 20 } else { 100 + number / 20 };
        let of = format!("quay.io/r{of}");
        let (digest, size) = image(&store, &of, &[b"base", &layer]);
        store.put_tag(&name(&of), &tag(&format!("v{number}")), &record(digest, size)).unwrap();
    }
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let mut directories = vec![directory.path().join("refs"), directory.path().join("blobs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => File::open(path).unwrap().set_modified(hour_ago).unwrap(),
            }
        }
    }
    let (before, began) = (resident_kib(), Instant::now());
    let sweep = store.begin_sweep().unwrap().unwrap();
    let mut index =
        sweep.eviction_index(SystemTime::now(), &Pins::default(), &mut || true).unwrap().unwrap();
    println!("{images} images: the index takes {:?} once", began.elapsed());
    println!("and {} KiB", resident_kib().saturating_sub(before));
    let (began, mut evicted) = (Instant::now(), 0);
    while evicted < 1000
        && let Some(candidate) = index.next(SystemTime::now())
    {
        let done = sweep.evict(&mut index, candidate, &Pins::default()).unwrap();
        assert!(matches!(done, Evicted::Removed { is_image: true, .. }), "{done:?}");
        evicted += 1;
    }
    println!("an eviction takes {:?}", began.elapsed() / evicted.max(1));
    println!("resident memory afterwards: {} KiB more", resident_kib().saturating_sub(before));
}
