//! Any members and holdings: nobody claims what another has or gives away what is not his, and when all follow the plan the
//! partitions are soon shared out fairly, and stay. Any records at a gate: each offset is taken once, in order.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

use rowmill::promise::decide::{Holding, Peer, share};
use rowmill::promise::gate::{Gate, Verdict};
use rowmill::promise::offsets::Anchor;
use rowmill::promise::reach::Reach;

#[derive(Arbitrary, Debug)]
struct Input {
    members: u8,
    owners: Vec<Option<u8>>,
    expected: u8,
    anchor_hash: i64,
    seen: Vec<(u8, i64)>,
}

fuzz_target!(|input: Input| {
    share_out(&input);
    pass_the_gate(&input);
});

fn share_out(input: &Input) {
    let member = |n: u8| Peer { name: format!("m{n}"), reach: Reach::Well };
    let members: Vec<Peer> = (0..1 + input.members % 8).map(member).collect();
    let is_member = |name: &String| members.iter().any(|member| member.name == *name);
    let mut holdings: Vec<Holding<usize>> = input
        .owners
        .iter()
        .take(40)
        .enumerate()
        .map(|(partition, owner)| Holding { partition, owner: owner.map(|n| format!("m{}", n % 10)) })
        .collect();
    // A tick for each member in turn, twice the partitions and members that there can be.
    for _ in 0..100 {
        let mut moved = false;
        for me in &members {
            let moves = share(me, &members, &holdings);
            for partition in &moves.release {
                assert_eq!(holdings[*partition].owner.as_ref(), Some(&me.name), "gives away what it has");
                holdings[*partition].owner = None;
            }
            for partition in &moves.claim {
                let owner = &mut holdings[*partition].owner;
                let is_free = owner.as_ref().is_none_or(|owner| !is_member(owner));
                assert!(is_free, "claims what is free");
                *owner = Some(me.name.clone());
            }
            moved |= !moves.release.is_empty() || !moves.claim.is_empty();
        }
        if !moved {
            break;
        }
    }
    let count = |me: &Peer| holdings.iter().filter(|h| h.owner.as_ref() == Some(&me.name)).count();
    let counts: Vec<usize> = members.iter().map(count).collect();
    assert_eq!(counts.iter().sum::<usize>(), holdings.len(), "everything has an owner");
    let spread = counts.iter().max().zip(counts.iter().min()).map_or(0, |(most, least)| most - least);
    assert!(spread <= 1, "{counts:?}");
    assert!(members.iter().all(|me| share(me, &members, &holdings).release.is_empty()), "and it stays so");
}

fn pass_the_gate(input: &Input) {
    let expected = i64::from(input.expected) + 1;
    let anchor = Anchor { offset: expected - 1, hash: input.anchor_hash };
    let mut gate = Gate::resume(expected, anchor);
    let (mut last, mut proven) = (expected - 1, false);
    for (offset, hash) in &input.seen {
        let offset = i64::from(*offset);
        match gate.see(offset, || *hash) {
            Verdict::Take => {
                assert!(proven && offset > last, "{offset} after {last}");
                last = offset;
            }
            Verdict::Drop => proven |= offset == anchor.offset && *hash == anchor.hash,
            Verdict::Stop(_) => return,
        }
    }
}
