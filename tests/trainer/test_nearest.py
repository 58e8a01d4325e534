"""A negative that asks the model: found before the first step, kept beside the reference's numbers."""

import torch

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import DataOptions, PreferenceDataset, read_rows
from mdpo.models import load, load_processor
from mdpo.models.image_embeddings import image_embeddings
from tests import tiny


def test_training_finds_the_nearest_pictures_of_its_own_rows_and_of_held_out_ones(tmp_path):
    folder, data = tiny.world(tmp_path / "world", count=5)
    rows, model, processor = read_rows(data), load(folder), load_processor(folder)
    ready = PreferenceDataset(rows, processor, DataOptions(negative="nearest_image"))
    args = MDPOConfig(
        output_dir=str(tmp_path / "out"),
        negative="nearest_image",
        max_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        examples_per_step=2,
        report_to="none",
        save_strategy="no",
        learning_rate=1e-4,
    )
    run = MDPOTrainer(model, args, train_dataset=ready, eval_dataset=rows[:3], processing_class=processor)
    run.train()
    run.evaluate()
    run.evaluate(rows[2:4])
    (kept,) = (tmp_path / "out" / "reference_cache").glob("image_embeddings-*.safetensors")
    assert kept.stat().st_size > 0
    pictures = [ready[index].images for index in range(5)]
    vectors = image_embeddings(load(folder), [f"{index:032x}" for index in range(5)], pictures.__getitem__)
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1).fill_diagonal_(-1)
    for index, nearest in enumerate(cosines.argmax(1).tolist()):
        found = run.train_dataset[index].rejected_images["pixel_values"]
        assert torch.equal(found, pictures[nearest]["pixel_values"]), index
