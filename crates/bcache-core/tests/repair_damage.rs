//! Twenty-odd kinds of damage, alone and in pairs. What repair announces is what becomes of the set. No
//! sector that could be read for certain is lost or changed. Whatever is wrong afterwards was announced.

#[path = "repair_support/claims.rs"]
mod claims;
#[path = "repair_support/headless.rs"]
mod headless;
#[path = "repair_support/sample.rs"]
mod sample;

use std::collections::BTreeSet;

use bcache_core::cache_set::{
    CacheDevice, CacheSet, LoadedNode, NewestEntry, NoVisitor, ReadOptions,
};
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, SimDevice, Trigger};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::SB_OFFSET_BYTES;
use bcache_core::ops::repair::NotAnew;
use bcache_core::ops::repair::{Anew, Class, Code, Left, Reason, RepairPlan, Witness, plan, run};
use bcache_core::units::{BucketIndex, Gen, Sectors};
use proptest::prelude::*;
use sample::Sample;

type Damaging = Box<dyn Fn(&Sample)>;

/// A kind of damage, and what repair makes of it alone.
struct Kind {
    name: &'static str,
    make: Damaging,
    /// How sure the repair is: `None` where single changes do.
    class: Option<Class>,
    /// Whether nothing is lost.
    whole: bool,
    /// Entries whose keys are lost.
    lost: Vec<u64>,
}

fn kind(name: &'static str, class: Option<Class>, make: impl Fn(&Sample) + 'static) -> Kind {
    Kind { name, make: Box::new(make), class, whole: true, lost: Vec::new() }
}

/// All kinds, with places taken from the sound set `of`.
fn kinds(of: &Sample) -> Vec<Kind> {
    let nodes = |level| of.nodes(level);
    let start = |level: u16, index: usize| nodes(level)[index].sector().bytes();
    let second = |index: usize| start(0, index) + nodes(0)[index].sets[1].offset as u64;
    let (root, interior) = (start(2, 0), start(1, 0));
    let (leaf, other_leaf) = (start(0, 3), start(0, 12));
    let (later, header) = (second(5), second(8));
    let prios: Vec<u64> = of.built.prio_buckets.iter().map(|it| of.byte_of(*it)).collect();
    let journal: Vec<u64> =
        of.built.superblock.journal_buckets().map(|it| of.byte_of(BucketIndex(it))).collect();
    let starts = journal.clone();
    let uuids = of.byte_of(of.built.uuid_bucket);
    let entry = |seq| of.entry_byte(seq);
    let (first, older, middle) = (entry(43), entry(44), entry(45));
    let (hiding, newest) = (entry(46), entry(47));
    let (likely, guess, certain) = (Some(Class::Likely), Some(Class::Guess), Some(Class::Certain));
    let prio = prios[1];
    let last_prio = prios[0];
    vec![
        kind("a bit in the root", None, move |it| Sample::flip(&it.cache, root + 41)),
        kind("a bit in a leaf", None, move |it| Sample::flip(&it.cache, other_leaf + 77)),
        kind("a bit in a prio set", None, move |it| Sample::flip(&it.cache, last_prio + 999)),
        kind("a bit in an entry", None, move |it| Sample::flip(&it.cache, middle + 60)),
        kind("a bit in the superblock", None, |it| {
            Sample::flip(&it.cache, SB_OFFSET_BYTES + 50);
        }),
        kind("a bit in a backing superblock", None, |it| {
            Sample::flip(&it.backing[1], SB_OFFSET_BYTES + 45);
        }),
        kind("the magic wiped", None, |it| it.noise(SB_OFFSET_BYTES + 24, 16)),
        kind("the superblock's checksum", None, |it| it.noise(SB_OFFSET_BYTES, 8)),
        kind("a prio set", likely, move |it| it.noise(prio, 4096)),
        kind("all prio sets", likely, move |it| {
            for byte in &prios {
                it.noise(*byte, 8192);
            }
        }),
        Kind {
            lost: vec![46],
            whole: false,
            ..kind("an entry before the newest", likely, move |it| it.noise(hiding + 16, 200))
        },
        kind("the first entry of the bucket before the newest", certain, move |it| {
            it.noise(first, 512);
        }),
        Kind {
            lost: vec![44],
            whole: false,
            ..kind("an older entry, in front of one that is needed", likely, move |it| {
                it.noise(older + 40, 90);
            })
        },
        Kind {
            lost: vec![47],
            whole: false,
            ..kind("the newest entry", None, move |it| it.noise(newest + 100, 64))
        },
        kind("the root", likely, move |it| it.noise(root, 512)),
        kind("the root zeroed", likely, move |it| it.zero(root, 8192)),
        kind("an interior node", likely, move |it| it.noise(interior + 8, 600)),
        Kind { whole: false, ..kind("a leaf", guess, move |it| it.noise(leaf, 512)) },
        Kind {
            whole: false,
            ..kind("another leaf, zeroed", guess, move |it| it.zero(other_leaf, 8192))
        },
        Kind {
            whole: false,
            ..kind("a later set of a leaf", guess, move |it| it.noise(later + 40, 64))
        },
        Kind {
            whole: false,
            ..kind("the length of a later set", guess, move |it| it.noise(header + 28, 4))
        },
        kind("the uuid table", certain, move |it| it.noise(uuids, 8192)),
        kind("the uuid table zeroed", certain, move |it| it.zero(uuids, 8192)),
        Kind {
            lost: vec![46],
            whole: false,
            ..kind("the first entry of each bucket of the journal", likely, move |it| {
                for byte in &starts {
                    it.noise(*byte, 200);
                }
            })
        },
        Kind {
            lost: (44..=47).collect(),
            whole: false,
            ..kind("all of the journal", guess, move |it| {
                for byte in &journal {
                    it.zero(*byte, 8192);
                }
            })
        },
        kind("a slot of the uuid table", certain, move |it| it.noise(uuids + 128 + 60, 60)),
    ]
    .into_iter()
    .chain(contradictions(of))
    .collect()
}

/// Damage under checksums that are right: only a kernel with faults, or its machine, makes such.
fn contradictions(of: &Sample) -> Vec<Kind> {
    let (likely, guess, certain) = (Some(Class::Likely), Some(Class::Guess), Some(Class::Certain));
    let past_device = |key: &Bkey| key.with_ptrs(&[Ptr::new(Gen(1), Sectors(1 << 40), 0)]);
    let leaves = of.nodes(0);
    let (bad, swapped) = (leaves[6].clone(), leaves[9].clone());
    let interior = |index: usize| of.nodes(1)[index].clone();
    let (lost_child, short) = (interior(0), interior(1));
    let (twice, long, uncovered) = (short.clone(), short.clone(), short.clone());
    let place = |key: &Bkey| key.ptrs()[0].bucket(&of.built.geometry).0;
    // Each bucket has two extents, and both volumes with a backing device clean ones.
    let keys: Vec<Bkey> = leaves.iter().flat_map(|leaf| leaf.keys.iter()).collect();
    let pair = |wanted: &dyn Fn(&[&Bkey]) -> bool| {
        let of_bucket = |bucket| keys.iter().filter(|key| place(key) == bucket).collect::<Vec<_>>();
        keys.iter().map(place).find(|bucket| wanted(&of_bucket(*bucket))).unwrap()
    };
    let dirty = pair(&|keys| keys.iter().any(|key| key.dirty() && key.inode() == 0));
    let clean = pair(&|keys| keys.iter().all(|key| !key.dirty()));
    let node_place = of.nodes(1)[1].sector();
    let uuid_place = of.built.geometry.bucket_to_sector(of.built.uuid_bucket);
    // The leaf with the first key of the kind, and the key's place there.
    let key_of = |wanted: &dyn Fn(&Bkey) -> bool| {
        leaves.iter().find_map(|leaf| {
            let index = leaf.keys.iter().position(|key| wanted(&key))?;
            Some((leaf.clone(), index))
        })
    };
    let (clean_leaf, clean_key) = key_of(&|key| key.inode() == 2 && !key.dirty()).unwrap();
    let (dirty_leaf, dirty_key) = key_of(&|key| key.inode() == 2 && key.dirty()).unwrap();
    let (flash_leaf, flash_key) = key_of(&|key| key.inode() == 1).unwrap();
    let moved = |key: &Bkey, sector| {
        let ptr_gen = key.ptrs()[0].ptr_gen();
        key.with_ptrs(&[Ptr::new(ptr_gen, sector, 0)])
    };
    let part = |kind: Kind| Kind { whole: false, ..kind };
    vec![
        part(kind("an extent past the device", guess, move |it| {
            it.rewrite(&bad, |keys| {
                let dirty = keys.iter_mut().find(|key| key.dirty()).unwrap();
                *dirty = past_device(dirty);
            });
        })),
        kind("keys out of order", guess, move |it| it.rewrite(&swapped, |keys| keys.swap(1, 2))),
        kind("a child past the device", likely, move |it| {
            it.rewrite(&lost_child, |keys| keys[1] = past_device(&keys[1]));
        }),
        kind("a child that ends too early", likely, move |it| {
            it.rewrite(&short, |keys| keys[1].low -= 60);
        }),
        kind("a child that ends too late", likely, move |it| {
            it.rewrite(&long, |keys| keys[1].low += 60);
        }),
        kind("two keys to one child", likely, move |it| {
            it.rewrite(&twice, |keys| keys[2] = keys[2].with_ptrs(keys[1].ptrs()));
        }),
        kind("the last child gone", likely, move |it| {
            it.rewrite(&uncovered, |keys| _ = keys.pop());
        }),
        part(kind("a bucket with dirty data reused", guess, move |it| it.raise_gen(dirty, 1))),
        kind("a gen far ahead of clean data", certain, move |it| it.raise_gen(clean, 97)),
        kind("a clean extent in a node", certain, move |it| {
            it.rewrite(&clean_leaf, |keys| keys[clean_key] = moved(&keys[clean_key], node_place));
        }),
        part(kind("a dirty extent in the uuid table", guess, move |it| {
            it.rewrite(&dirty_leaf, |keys| keys[dirty_key] = moved(&keys[dirty_key], uuid_place));
        })),
        kind("clean data of a flash-only volume", certain, move |it| {
            it.rewrite(&flash_leaf, |keys| keys[flash_key] = keys[flash_key].with_dirty(false));
        }),
        Kind {
            lost: vec![46],
            ..part(kind("an extent past its bucket in an entry", likely, |it| {
                it.rewrite_entry(46, |_| {}, |keys| keys[0].extend_by(12));
            }))
        },
        kind("an entry that needs later ones", None, |it| {
            it.rewrite_entry(47, |params| params.last_seq = 50, |_| {});
        }),
        kind("a superblock that says new", None, |it| it.set_flags(|flags| flags & !1)),
        kind("a policy that no kernel has", None, |it| it.set_flags(|flags| flags | 5 << 2)),
    ]
}

fn planned(sample: &Sample) -> RepairPlan {
    plan(&sample.cache, &sample.named(), &ReadOptions::default(), &mut |_| {}).unwrap()
}

fn all() -> BTreeSet<Code> {
    Code::ALL.into()
}

/// What a plan announces of the sectors of a volume that may be wrong afterwards.
fn announced(sample: &Sample, plan: &RepairPlan, inode: u32) -> impl Fn(u64) -> bool + use<> {
    let data_offset = if inode == 1 { 0 } else { 16 };
    let anew = plan.anew.as_ref();
    let unknown = anew.and_then(|anew| anew.volumes.get(&inode)?.unknown);
    let gaps = anew.into_iter().flat_map(|anew| &anew.reasons).flat_map(|reason| match reason {
        Reason::Journal { gaps, .. } => gaps.as_slice(),
        _ => &[],
    });
    let mut lost: Vec<u64> = gaps.flat_map(|gap| gap.first..=gap.last).collect();
    let damaged = anew.into_iter().flat_map(|anew| &anew.reasons).flat_map(|reason| match reason {
        Reason::Journal { damaged_entries, .. } => damaged_entries.iter().copied().collect(),
        _ => Vec::new(),
    });
    lost.extend(damaged);
    let told: BTreeSet<u64> = sample.told_by(inode, &lost).into_iter().collect();
    move |sector| {
        let at = sector + data_offset;
        told.contains(&sector) || unknown.is_some_and(|(from, to)| (from..to).contains(&at))
    }
}

/// Repairs `damaged` and holds the result against what was announced. Tells how many sectors are wrong.
fn check(sound: &Sample, damaged: &Sample, lost: &[u64], name: &str) -> (RepairPlan, usize) {
    let before: Vec<_> = (0..3).map(|inode| damaged.read(inode, NewestEntry::Greatest)).collect();
    let untouched = damaged.snapshot();
    let plan = planned(damaged);
    let newest =
        if plan.not_anew.is_some() { NewestEntry::Greatest } else { NewestEntry::AsKernel };
    let options = ReadOptions::default();
    run(&plan, &all(), &damaged.cache, &damaged.writers(), &options, 5)
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    // Of a superblock whose checksum nobody vouches for, it cannot be told whether there is a set.
    let no_set = |left: &Left| matches!(left, Left::NoSet(_));
    let given_up = plan.not_anew.is_some() || plan.left.iter().any(no_set);
    let mut wrong = 0;
    for (inode, before) in (0u32..).zip(&before) {
        let after = damaged.read(inode, newest);
        // Nothing that was certain is lost or changed, whatever became of the rest.
        for (sector, was) in before.iter().flatten().enumerate() {
            let Some((was, true)) = was else { continue };
            let now = after.as_ref().and_then(|after| after[sector]);
            assert_eq!(now, Some((*was, true)), "{name}: volume {inode}, sector {sector}");
        }
        if given_up {
            continue;
        }
        let after = after.unwrap_or_else(|| panic!("{name}: not mended: {:?}", plan.left));
        let is_announced = announced(sound, &plan, inode);
        let (truth, without) = (sound.truth(inode, &[]), sound.truth(inode, lost));
        let share = plan.anew.as_ref().and_then(|anew| anew.volumes.get(&inode));
        let mut lost_sectors = share.map_or(0, |share| share.lost_sectors);
        for (sector, now) in after.iter().enumerate() {
            let now = now.unwrap_or_else(|| panic!("{name}: volume {inode}, sector {sector}"));
            let place = format!("{name}: volume {inode}, sector {sector}");
            assert!(now.1, "{place} is not certain now");
            if now.0 == truth[sector] {
                continue;
            }
            wrong += 1;
            let announced = is_announced(u64::try_from(sector).unwrap());
            if announced {
                continue;
            }
            // A newest entry that is torn was never acknowledged.
            if now.0 == without[sector] && lost.contains(&47) {
                continue;
            }
            assert!(lost_sectors > 0, "{place}");
            lost_sectors -= 1;
        }
    }
    if given_up {
        // Only what stands by itself was changed; the metadata is as it was.
        assert!(plan.anew.is_none(), "{name}");
        if plan.fixes.is_empty() {
            assert_eq!(damaged.cache.first_difference(&untouched.cache), None, "{name}");
        }
        return (plan, wrong);
    }
    let opened = CacheDevice::open(&damaged.cache).unwrap();
    let set = CacheSet::read(opened, &options, &mut NoVisitor).unwrap();
    if let Some(anew) = &plan.anew {
        for (slot, share) in &anew.volumes {
            let found = set.volumes.get(slot).map_or(0, |volume| volume.dirty_sectors.0);
            let expected = if *slot == 1 { found } else { share.dirty_sectors };
            assert_eq!(found, expected, "{name}: dirty sectors of volume {slot}");
        }
        assert_eq!(set.dirty_sectors(), anew.dirty_sectors(), "{name}");
    }
    let stays = |left: &&Left| !matches!(left, Left::Stays(_));
    if plan.left_with(&all()).any(|left| stays(&left)) {
        // A superblock that nobody vouches for, as long as the rest is a guess.
        assert_eq!(plan.anew.as_ref().map(Anew::class), Some(Class::Guess), "{name}");
        return (plan, wrong);
    }
    let again = planned(damaged);
    let left: Vec<_> = again.left.iter().filter(stays).collect();
    assert!(left.is_empty() && again.fixes.is_empty(), "{name}: {left:?}");
    (plan, wrong)
}

#[test]
fn each_kind_alone() {
    let sound = Sample::new().with_older_table(|_| {});
    let kinds = kinds(&sound);
    assert!(kinds.len() >= 15, "{}", kinds.len());
    let dirty_before = planned(&sound).dirty_sectors_after.unwrap().0;
    for kind in &kinds {
        let damaged = sound.snapshot();
        (kind.make)(&damaged);
        assert!(
            damaged.cache.first_difference(&sound.cache).is_some()
                || damaged.backing[1].first_difference(&sound.backing[1]).is_some()
        );
        let (plan, wrong) = check(&sound, &damaged, &kind.lost, kind.name);
        assert!(plan.not_anew.is_none(), "{}: {:?}", kind.name, plan.not_anew);
        let class = plan.anew.as_ref().map(Anew::class);
        assert_eq!(class, kind.class, "{}: {plan:?}", kind.name);
        assert_eq!(wrong == 0, kind.whole, "{}: {wrong} sectors are wrong", kind.name);
        if kind.class == Some(Class::Guess) && kind.lost.is_empty() {
            // What is wrong is what is no longer dirty, to the sector.
            let lost = dirty_before - plan.dirty_sectors_after.unwrap().0;
            assert_eq!(lost, wrong as u64, "{}", kind.name);
        }
        if kind.class.is_none() && kind.lost.is_empty() {
            assert_eq!(damaged.cache.first_difference(&sound.cache), None, "{}", kind.name);
        }
    }
}

#[test]
fn kinds_in_pairs() {
    let sound = Sample::new().with_older_table(|_| {});
    let kinds = kinds(&sound);
    let plain = kinds.len() - contradictions(&sound).len();
    let (mut mended, mut tried) = (0, 0);
    for (index, one) in kinds.iter().enumerate() {
        for (after, other) in kinds[index + 1..].iter().enumerate() {
            let name = format!("{} and {}", one.name, other.name);
            // Of an old kind with one that contradicts, a third will do.
            let mixed = (index < plain) != (index + 1 + after < plain);
            if mixed && (index + after) % 3 > 0 {
                continue;
            }
            tried += 1;
            if (one.name, other.name) == ("the magic wiped", "the superblock's checksum") {
                // Nothing tells that it was a superblock.
                continue;
            }
            let damaged = sound.snapshot();
            (one.make)(&damaged);
            (other.make)(&damaged);
            let lost: Vec<u64> = one.lost.iter().chain(&other.lost).copied().collect();
            let (plan, _) = check(&sound, &damaged, &lost, &name);
            mended += usize::from(plan.not_anew.is_none());
            if let Some(error) = &plan.not_anew {
                eprintln!("{name}: {error}");
            }
        }
    }
    eprintln!("{mended} of {tried} pairs are mended");
    assert!(mended * 10 >= tried * 9, "{mended} of {tried}");
}

/// Where noise goes: node by node its first set and the rest, and the prio sets; each with its length. Of
/// a later set, without its sequence number: with another, it is none of the node's, and nobody can tell.
fn noisy_places(sound: &Sample) -> Vec<(u64, u64)> {
    let sets = |node: &LoadedNode| {
        let (start, end) = (node.sector().bytes(), node.sets[1].offset as u64);
        [(start, end), (start + end + 24, 8192 - end - 24)]
    };
    let nodes = (0..3).flat_map(|level| sound.nodes(level)).flat_map(|node| sets(&node));
    let prios = sound.built.prio_buckets.iter().map(|it| (sound.byte_of(*it), 8192));
    nodes.chain(prios).collect()
}

/// The new metadata goes by the superblock as it was: without that, nothing is made.
#[test]
fn new_metadata_waits_for_the_superblock() {
    let sound = Sample::new().with_older_table(|_| {});
    let damaged = sound.snapshot();
    // The number of buckets, and a leaf.
    damaged.noise(SB_OFFSET_BYTES + 184, 2);
    damaged.noise(sound.nodes(0)[3].sector().bytes(), 4096);
    let plan = planned(&damaged);
    let codes: Vec<_> = plan.fixes.iter().map(|fix| (fix.code, fix.class)).collect();
    assert_eq!(codes, [(Code::SuperblockField, Class::Likely)]);
    let leaf = BTreeSet::from([Code::BtreeNode]);
    assert!(plan.anew.is_some() && plan.is_nothing(&leaf));
    let untouched = damaged.snapshot();
    let (cache, options) = (&damaged.cache, ReadOptions::default());
    run(&plan, &leaf, cache, &damaged.writers(), &options, 5).unwrap();
    assert_eq!(cache.first_difference(&untouched.cache), None);
    check(&sound, &damaged, &[], "both");
}

/// Two stretches next to each other are lost, and the first node tells nothing: neither is taken for part of
/// the other.
#[test]
fn an_interior_node_and_noise_in_another() {
    let sound = Sample::new().with_older_table(|_| {});
    let kinds = kinds(&sound);
    let kind = kinds.iter().find(|kind| kind.name == "an interior node").unwrap();
    let places = noisy_places(&sound);
    let index = (places.len() as u128 * 16_504_981_714_488_825_618) >> 64;
    let (start, room) = places[usize::try_from(index).unwrap()];
    let damaged = sound.snapshot();
    (kind.make)(&damaged);
    let at = 1202 % room;
    damaged.noise(start + at, 470.min(usize::try_from(room - at).unwrap()));
    check(&sound, &damaged, &kind.lost, "both");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Several kinds at once, and noise anywhere in the metadata: never worse, and all that is wrong was
    /// announced.
    #[test]
    fn several_at_once(
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        places in prop::collection::vec((any::<prop::sample::Index>(), 0..3000u64, 1..600usize), 0..3),
    ) {
        let sound = Sample::new().with_older_table(|_| {});
        let kinds = kinds(&sound);
        let damaged = sound.snapshot();
        let mut lost = Vec::new();
        let mut name = String::new();
        for index in chosen {
            let kind = index.get(&kinds);
            (kind.make)(&damaged);
            lost.extend(&kind.lost);
            name += kind.name;
            name += ", ";
        }
        let all = noisy_places(&sound);
        for (place, at, len) in places {
            let (start, room) = *place.get(&all);
            let at = at % room;
            damaged.noise(start + at, len.min(usize::try_from(room - at).unwrap()));
        }
        let magic = name.contains("magic") && name.contains("superblock's");
        prop_assume!(!magic);
        check(&sound, &damaged, &lost, &name);
    }
}

/// What says whose a volume is, by slot.
fn witnesses(plan: &RepairPlan) -> Vec<(u32, Witness)> {
    let reasons = plan.anew.iter().flat_map(|anew| &anew.reasons);
    let known = reasons.filter_map(|reason| match reason {
        Reason::UuidTable { known } => Some(known),
        _ => None,
    });
    known.flatten().map(|(slot, witness)| (*slot, *witness)).collect()
}

/// The uuid table of the set as it is now: uuids by slot.
fn uuids(sample: &Sample) -> Vec<uuid::Uuid> {
    let opened = CacheDevice::open(&sample.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    set.uuids.slots.iter().map(|entry| entry.uuid).filter(|uuid| !uuid.is_nil()).collect()
}

/// What it is, the set, what is damaged, how many devices are named, and what says whose the volumes are.
type Case<'c> = (&'c str, Sample, &'c dyn Fn(&Sample), usize, Option<[Witness; 3]>);

#[test]
fn volumes_find_their_owners_by_what_there_is() {
    use Witness::{Data, FoundTable, OlderTable, OnlyOne, Slot};
    let uuid_table = |sample: &Sample| sample.byte_of(sample.built.uuid_bucket);
    let plain = Sample::new();
    let expected = uuids(&plain);
    let with_all = || Sample::new().with_older_table(|_| {});
    let without_last = || {
        Sample::new().with_older_table(|slots| {
            slots.pop();
        })
    };
    let of_another_set = || Sample::new().with_older_table(|slots| slots.swap(0, 2));
    // Uuids stay in the garbage; the rest of each slot is gone.
    let slots_hit = |sample: &Sample| {
        for slot in 0..3 {
            sample.noise(uuid_table(sample) + slot * 128 + 48, 80);
        }
        sample.noise(uuid_table(sample) + 400, 4000);
    };
    let all_hit = |sample: &Sample| sample.noise(uuid_table(sample), 8192);
    let cases: Vec<Case<'_>> = vec![
        ("a table, and devices", with_all(), &all_hit, 2, Some([Data, OlderTable, Data])),
        ("a table alone", with_all(), &all_hit, 0, Some([FoundTable; 3])),
        (
            "the table of before the last attach",
            without_last(),
            &all_hit,
            2,
            Some([Data, OlderTable, Data]),
        ),
        ("uuids in the garbage", with_all(), &slots_hit, 2, Some([Slot, OlderTable, Slot])),
        ("the same, one device", with_all(), &slots_hit, 1, Some([Slot, OlderTable, OlderTable])),
        ("a table of another set", of_another_set(), &all_hit, 2, Some([Data, FoundTable, Data])),
        ("no table", Sample::new(), &all_hit, 2, None),
        ("neither", Sample::new(), &all_hit, 0, None),
        ("the table of before, no device", without_last(), &all_hit, 0, None),
    ];
    for (name, sample, damage, devices, known) in cases {
        let sound = sample.snapshot();
        damage(&sample);
        let damaged = sample.cache.snapshot();
        let named = &sample.named()[..devices];
        let options = ReadOptions::default();
        let plan = plan(&sample.cache, named, &options, &mut |_| {}).unwrap();
        let writers = &sample.writers()[..devices];
        run(&plan, &all(), &sample.cache, writers, &options, 3).unwrap();
        let Some(known) = known else {
            assert!(
                matches!(plan.not_anew, Some(NotAnew::NoOwner { .. })),
                "{name}: {:?}",
                plan.not_anew
            );
            assert_eq!(sample.cache.first_difference(&damaged), None, "{name}");
            continue;
        };
        assert_eq!(witnesses(&plan), [(0, known[0]), (1, known[1]), (2, known[2])], "{name}");
        let class = known.iter().map(|it| it.class()).max();
        assert_eq!(plan.anew.as_ref().map(Anew::class), class, "{name}");
        assert_eq!(uuids(&sample), expected, "{name}");
        for inode in 0..3 {
            let truth = sound.truth(inode, &[]);
            let after = sample.read(inode, NewestEntry::AsKernel).unwrap();
            for (sector, now) in after.iter().enumerate() {
                assert_eq!(now.unwrap(), (truth[sector], true), "{name}: volume {inode}, {sector}");
            }
        }
    }
    // A device that is the only one left gets the volume that is, and that is a guess.
    assert_eq!(OnlyOne.class(), Class::Guess);
}

/// Reads the leaf at `index` of the sound set, and the bytes of its sets joined in one, for another bucket.
fn copy_of_leaf(
    sound: &Sample,
    index: usize,
    keys: usize,
    bucket: u64,
    ptr_gen: Gen,
) -> (u64, Vec<u8>) {
    use bcache_core::layout::bkey::Ptr;
    use bcache_core::layout::bset;
    let geometry = sound.built.geometry;
    let leaf = &sound.nodes(0)[index];
    let keys: Vec<_> = leaf.keys.iter().take(keys).collect();
    let sector = geometry.bucket_to_sector(BucketIndex(bucket));
    let ptr = Ptr::new(ptr_gen, sector, 0);
    let mut bytes = bset::encode(sound.built.magic, ptr, 77, &keys);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    (sector.bytes(), bytes)
}

#[test]
fn outdated_copies_are_told_from_nodes_and_are_of_use() {
    use bcache_core::device::BlockDevice;
    let sound = Sample::new();
    // A bucket that nothing points to, of gen 1.
    let bucket = 1501;
    let place = |ptr_gen, keys| copy_of_leaf(&sound, 3, keys, bucket, ptr_gen);
    let leaf = sound.nodes(0)[3].sector().bytes();
    let root = sound.nodes(2)[0].sector().bytes();

    // Without the copy, a lost leaf loses data. With an outdated one nothing, but that is a guess.
    let damaged = sound.snapshot();
    damaged.noise(leaf, 512);
    let (_, wrong) = check(&sound, &damaged, &[], "no copy");
    assert!(wrong > 0);
    let damaged = sound.snapshot();
    let (at, bytes) = place(Gen(0), 1000);
    damaged.cache.write_at(at, &bytes).unwrap();
    damaged.noise(leaf, 512);
    let (plan, wrong) = check(&sound, &damaged, &[], "an outdated copy");
    assert_eq!((plan.anew.unwrap().class(), wrong), (Class::Guess, 0));

    // Where the root is lost, an outdated copy is none of its leaves.
    let damaged = sound.snapshot();
    damaged.cache.write_at(at, &bytes).unwrap();
    damaged.noise(root, 512);
    let (plan, wrong) = check(&sound, &damaged, &[], "the root, and an outdated copy");
    assert_eq!((plan.anew.unwrap().class(), wrong), (Class::Likely, 0));

    // One that looks as if it were not outdated overlaps with the leaf that replaced it.
    let damaged = sound.snapshot();
    let (at, bytes) = place(Gen(1), 9);
    damaged.cache.write_at(at, &bytes).unwrap();
    damaged.noise(root, 512);
    let (plan, wrong) = check(&sound, &damaged, &[], "the root, and a copy that looks live");
    assert_eq!((plan.anew.unwrap().class(), wrong), (Class::Guess, 0));
}

#[test]
fn a_root_that_cannot_be_read_is_searched_for() {
    let sound = Sample::new();
    let root = sound.nodes(2)[0].sector().bytes();
    let fault = Fault::new(Trigger::Overlaps { operation: None, offset: root, len: 512 })
        .lasting(Lasting::Always);
    let device = FaultDevice::new(sound.cache.snapshot()).with(fault);
    let options = ReadOptions::default();
    let plan = plan(&device, &sound.named(), &options, &mut |_| {}).unwrap();
    assert_eq!(plan.anew.as_ref().map(Anew::class), Some(Class::Likely), "{plan:?}");
    run(&plan, &all(), &device, &sound.writers(), &options, 3).unwrap();
    let mended = sound.snapshot();
    mended.cache.restore(device.inner());
    for inode in 0..3 {
        let truth = sound.truth(inode, &[]);
        let after = mended.read(inode, NewestEntry::AsKernel).unwrap();
        assert!(after.iter().zip(&truth).all(|(now, then)| now.unwrap() == (*then, true)));
    }
}

/// Root and uuid table are made again from what the search finds. A power cut leaves that as it was.
#[test]
fn after_a_power_cut_the_search_finds_the_same() {
    let sound = Sample::new().with_older_table(|_| {});
    let damaged = sound.snapshot();
    for kind in kinds(&sound).iter().filter(|it| ["the root", "the uuid table"].contains(&it.name))
    {
        (kind.make)(&damaged);
    }
    let options = ReadOptions::default();
    let named = damaged.named();
    for cut in 0.. {
        let sim = SimDevice::new(&damaged.cache).with_power_cut_at(cut);
        let plan = plan(&sim, &named, &options, &mut |_| {}).unwrap();
        let result = run(&plan, &all(), &sim, &damaged.writers(), &options, cut);
        if result.is_ok() {
            assert!(cut >= 10, "{cut}");
            return;
        }
        for seed in 0..3 {
            let crashed = damaged.snapshot();
            crashed.cache.restore(&sim.crash(seed));
            let (_, wrong) = check(&sound, &crashed, &[], &format!("cut {cut}, seed {seed}"));
            assert_eq!(wrong, 0, "cut {cut}, seed {seed}");
        }
    }
}

/// What a repair mends for certain is mended first: what it brings back may be newer than what would be
/// written back, and new metadata overwrites what tells of it.
#[test]
fn nothing_is_written_back_before_a_certain_repair() {
    use bcache_core::ops::writeback::{self, Options, WritebackError};
    type Case<'c> = (&'c str, &'c dyn Fn(&Sample), bool);
    let sound = Sample::new().with_older_table(|_| {});
    let newest = sound.entry_byte(47);
    let slot = sound.byte_of(sound.built.uuid_bucket) + 2 * 128;
    let cases: [Case<'_>; 4] = [
        ("sound", &|_| {}, false),
        ("a bit of the newest entry", &|it| Sample::flip(&it.cache, newest + 60), true),
        // Torn, or as good as that: the kernel goes on without it, and so does everybody.
        ("half of the newest entry", &|it| it.noise(newest + 100, 64), false),
        ("a slot emptied", &|it| it.zero_part(slot, 128), true),
    ];
    for (name, damage, refused) in cases {
        let damaged = sound.snapshot();
        damage(&damaged);
        let named = damaged.named();
        let plan = writeback::plan(&damaged.cache, &named, &Options::default(), &mut |_| {});
        match plan {
            Ok(_) => assert!(!refused, "{name}"),
            Err(WritebackError::Mendable { what, .. }) => assert!(refused, "{name}: {what}"),
            Err(error) => panic!("{name}: {error}"),
        }
        if refused {
            let options = ReadOptions::default();
            let (none, writers) = (BTreeSet::new(), damaged.writers());
            run(&planned(&damaged), &none, &damaged.cache, &writers, &options, 5).unwrap();
            for inode in 0..3 {
                let truth = sound.truth(inode, &[]).into_iter().map(|it| Some((it, true)));
                let now = damaged.read(inode, NewestEntry::AsKernel).unwrap();
                assert!(now.into_iter().eq(truth), "{name}: volume {inode}");
            }
            let named = damaged.named();
            writeback::plan(&damaged.cache, &named, &Options::default(), &mut |_| {}).unwrap();
        }
    }
}
