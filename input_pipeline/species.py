"""Which specimens validate: for every species a few group pictures (trays), whole.

Specimens of one tray share light, scale and often the species, so a tray is never divided. The
rule is that of the published beetle experiments (https://github.com/samuelstevens/beetle-traits).
There the order of the groups depended on the order of the rows of a table; here they are sorted
before they are shuffled, so that the same files give the same split on every machine.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Quota:
    """How much of a species validates, at the least.

    Attributes:
      groups: groups. A species that has no more than this validates wholly.
      specimens: specimens.
    """

    groups: int
    specimens: int


_QUOTAS = {"biorepo": Quota(groups=1, specimens=0)}  # by data set
_USUAL = Quota(groups=2, specimens=20)


def quota_of(dataset: str) -> Quota:
    """Returns the quota of a data set: 2 groups and 20 specimens where nothing else is known."""
    return _QUOTAS.get(dataset, _USUAL)


def divide(
    groups: np.ndarray, species: np.ndarray, named: np.ndarray, quota: Quota, seed: int
) -> np.ndarray:
    """Names the split of every specimen of a data set.

    Args:
      groups: [N] str.
      species: [N] str.
      named: [N] str, the splits that the data names, or ''. Only the specimens without one are
        divided.
      quota: of what validates.
      seed: another number shuffles otherwise.

    Returns:
      [N] str: what is named, else 'train' or 'val'; '' for what is named 'train' in a group that
      validates, because training would show what is to be held out.
    """
    names = named.astype("<U5")
    ruled = names == ""
    val = validates(groups[ruled], species[ruled], quota, seed)
    names[ruled] = np.where(val, "val", "train")
    names[~ruled & (names == "train") & np.isin(groups, groups[ruled][val])] = ""
    return names


def validates(groups: np.ndarray, species: np.ndarray, quota: Quota, seed: int) -> np.ndarray:
    """Chooses the groups that validate.

    First go all groups of species that have no more than the quota. Then every other species, by
    name, adds groups in a shuffled order until it has its quota; groups that validate already, for
    a species that shares them, count.

    Args:
      groups: [N] str, the group of each specimen.
      species: [N] str; specimens of no known species ('') count as one.
      quota: of groups and specimens.
      seed: another number shuffles otherwise.

    Returns:
      [N] bool; the same for any order of the rows.
    """
    groups_of = {str(s): np.unique(groups[species == s]) for s in np.unique(species)}
    few = [own for own in groups_of.values() if len(own) <= quota.groups]
    chosen = {str(group) for own in few for group in own}
    for name, own in groups_of.items():
        # Its own generator: a species more or less does not reshuffle the others.
        shuffled = np.random.default_rng([seed, *name.encode()]).permutation(own)
        for group in shuffled:
            here = np.isin(groups, list(chosen)) & (species == name)
            if len(set(groups[here])) >= quota.groups and here.sum() >= quota.specimens:
                break
            chosen.add(str(group))
    return np.isin(groups, list(chosen))
