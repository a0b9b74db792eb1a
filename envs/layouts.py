"""The published maze layouts, a row a word; maze.py says what the characters mean.

`_eval` layouts keep only the goals that are far from the start, `_single_eval` one of them, `_eval_1f2f3f` those 1,
2 and 3 cells along the path: train on one, evaluate on the other.
"""

LAYOUTS = {
    "u_maze": "##### #RGG# ###G# #GGG# #####",
    "u_maze_eval": "##### #R..# ###.# #GGG# #####",
    "u_maze_single_eval": "##### #R..# ###.# #G..# #####",
    "u_maze_eval_1f2f3f": "##### #RGG# ###G# #...# #####",
    "u_maze_eval_1f2f3f4f": "##### #RGG# ###G# #..G# #####",
    "u_maze_eval_1f2f3f4f5f": "##### #RGG# ###G# #.GG# #####",
    "u_maze_eval_5f6f": "##### #R..# ###.# #GG.# #####",
    "u2_maze": "###### #RGGG# ####G# #GGGG# ######",
    "u2_maze_eval": "###### #R...# ####.# #GGGG# ######",
    "u3_maze": "####### #RGGGG# #####G# #GGGGG# #######",
    "u3_maze_eval": "####### #R....# #####.# #GGGGG# #######",
    "u3_maze_single_eval": "####### #R....# #####.# #G....# #######",
    "u4_maze": "##### #GGG# #R#G# ###G# #G#G# #GGG# #####",
    "u4_maze_eval": "##### #...# #R#.# ###.# #G#.# #GGG# #####",
    "u5_maze": "######## #GGGGGG# #R####G# ######G# #G####G# #GGGGGG# ########",
    "u5_maze_eval": "######## #......# #R####.# ######.# #G####G# #GGGGGG# ########",
    "u5_maze_single_eval": "######## #......# #R####.# ######.# #G####.# #......# ########",
    "u6_maze": "####### #GGGGG# #R###G# #####G# #G###G# #GGGGG# #######",
    "u6_maze_eval": "####### #.....# #R###.# #####.# #G###G# #GGGGG# #######",
    "u7_maze": "###### #GGGG# #R##G# ####G# #G##G# #GGGG# ######",
    "u7_maze_eval": "###### #....# #R##.# ####.# #G##G# #GGGG# ######",
    "big_maze": "######## #RG##GG# #GG#GGG# ##GGG### #GG#GGG# #G#GG#G# #GGG#GG# ########",
    "big_maze_eval": "######## #R.##GG# #..#.GG# ##...### #..#...# #.#G.#G# #.GG#GG# ########",
    "hardest_maze": (
        "############ #RGGG#GGGGG# #G##G#G#G#G# #GGGGGG#GGG# #G####G###G# "
        "#GG#G#GGGGG# ##G#G#G#G### #GG#GGG#GGG# ############"
    ),
}

# The ant's big_maze_eval was published with one goal fewer (row 2) than the point's and the humanoid's.
ANT_LAYOUTS = {
    **LAYOUTS,
    "big_maze_eval": "######## #R.##GG# #..#..G# ##...### #..#...# #.#G.#G# #.GG#GG# ########",
}
