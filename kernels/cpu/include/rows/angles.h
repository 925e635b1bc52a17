/* Cosine and sine of RoPE's angles, in double and without libm, so that every CPU gets the same bits. */
#ifndef OLLAMA_ANGLES_H
#define OLLAMA_ANGLES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* sin and cos of r, |r| <= pi / 4. Source: fdlibm k_sin.c and k_cos.c (Sun Microsystems 1993). */
static inline double sin_of_small(double r)
{
    double z = r * r;
    double p = -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10;
    p = -1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * p);
    p = -1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * p);
    return r + r * z * p;
}

static inline double cos_of_small(double r)
{
    double z = r * r;
    double p = 2.08757232129817482790e-09 + z * -1.13596475577881948265e-11;
    p = 2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * p);
    p = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * p);
    return 1.0 - 0.5 * z + z * z * p;
}

/* Nearest integer of |a| < 2^51 in the low bits of a + 1.5 * 2^52; pi / 2 comes off in three pieces of 33 bits. */
static inline void cos_sin(double angle, double magnitude, float *cosine, float *sine)
{
    const double rounding = 6755399441055744.0;
    double shifted = angle * 6.36619772367581382433e-01 + rounding, n = shifted - rounding;
    int64_t quarter;
    memcpy(&quarter, &shifted, sizeof quarter);
    double r = angle - n * 1.57079632673412561417e+00;
    r = r - n * 6.07710050630396597660e-11 - n * 2.02226624879595063154e-21;
    double c = cos_of_small(r), s = sin_of_small(r);
    double turned_c = quarter & 1 ? s : c, turned_s = quarter & 1 ? c : s;
    *cosine = (float)(magnitude * ((quarter + 1) & 2 ? -turned_c : turned_c));
    *sine = (float)(magnitude * (quarter & 2 ? -turned_s : turned_s));
}

/* Angles position * frequency[i] -> magnitude * cos in out[0..pairs), magnitude * sin in out[pairs..2 pairs). */
static inline void rope_table(int32_t position, const double *frequency, double magnitude, size_t pairs, float *out)
{
    for (size_t i = 0; i < pairs; i++) cos_sin((double)position * frequency[i], magnitude, out + i, out + pairs + i);
}

#endif
